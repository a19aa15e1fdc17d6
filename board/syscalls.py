"""Take from this process and its children the system calls that proot 5.1 does not know.

proot translates the paths of the guest's system calls. Calls that Linux got later than 2014 pass it untouched and
reach the host's files: without this, the guest's `ls` and `stat` (statx) and `test -x` (faccessat2) describe the host.
Answered with ENOSYS, such calls make every C library fall back on older ones, which proot translates.
"""

import ctypes
import errno
import os
import platform
import struct

from wattbit.errors import WattbitError

# x86-64 numbers of calls that take a path
UNKNOWN_TO_PROOT = {
    "renameat2": 316,
    "execveat": 322,
    "statx": 332,
    "open_tree": 428,
    "move_mount": 429,
    "fspick": 433,
    "openat2": 437,
    "faccessat2": 439,
    "mount_setattr": 442,
    "fchmodat2": 452,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
}
AUDIT_ARCH_X86_64 = 0xC000003E
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of classic BPF
NUMBER, ARCH = 0, 4  # offsets in struct seccomp_data
ALLOW, FAIL = 0x7FFF0000, 0x00050000 | errno.ENOSYS


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def hide_from_proot() -> None:
    """Install the filter, for good. Raises WattbitError on a machine that is not x86-64 or refuses it."""
    if platform.machine() != "x86_64":
        raise WattbitError(f"the virtual board runs on x86-64, not on {platform.machine()}")
    code = _filter(tuple(UNKNOWN_TO_PROOT.values()))
    program = _Program(len(code) // 8, code)
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong)
    for option, value, pointer in (
        (PR_SET_NO_NEW_PRIVS, 1, None),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program)),
    ):
        if prctl(option, value, pointer, 0, 0) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise WattbitError(f"this machine refuses a seccomp filter, which the virtual board needs: {reason}")


def _filter(numbers: tuple[int, ...]) -> bytes:
    def instruction(code: int, constant: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, constant)

    count = len(numbers)
    return b"".join(
        [
            instruction(LOAD, ARCH),
            instruction(JUMP_IF_EQUAL, AUDIT_ARCH_X86_64, 0, count + 1),
            instruction(LOAD, NUMBER),
            *(instruction(JUMP_IF_EQUAL, number, count - index) for index, number in enumerate(numbers)),
            instruction(RETURN, ALLOW),
            instruction(RETURN, FAIL),
        ]
    )
