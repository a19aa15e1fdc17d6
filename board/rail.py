"""The rail of the virtual board's system tier: a model of its power, written into the registers of its INA226.

`python3 -m wattbit.board.rail` runs in the guest. The chip is the kernel's i2c-stub, which keeps register values; the
kernel's own ina2xx driver reads them, as it would a chip's. What the board does is in ACTIVITY, which the agent writes
beside its simulated accelerator; the model makes watts of it. Everything that is read from it is simulated.
"""

import ctypes
import fcntl
import json
import os
import random
import time
from pathlib import Path

from wattbit.board.agent.activity import ACTIVITY, Activity
from wattbit.board.agent.power import PowerModel
from wattbit.errors import WattbitError

BUS, ADDRESS = 0, 0x40
I2C_SLAVE_FORCE, I2C_SMBUS = 0x0706, 0x0720
SMBUS_WRITE, SMBUS_WORD = 0, 3
SHUNT, BUS_VOLTAGE, POWER, CURRENT = 1, 2, 3, 4  # the INA226's registers
SHUNT_OHM, RAIL_V = 0.05, 5.0  # steps of 1.25 mW in the driver's arithmetic
BUS_STEP_V, SHUNT_STEP_V = 1.25e-3, 2.5e-6
NEW_DEVICE = Path(f"/sys/bus/i2c/devices/i2c-{BUS}/new_device")
HWMON = Path("/sys/class/hwmon")


class _Transfer(ctypes.Structure):
    """struct i2c_smbus_ioctl_data of linux/i2c-dev.h."""

    _fields_ = (
        ("read_write", ctypes.c_uint8),
        ("command", ctypes.c_uint8),
        ("size", ctypes.c_uint32),
        ("data", ctypes.c_void_p),
    )


class Ina226:
    """The registers of the chip on the stub bus. It sends words high byte first, SMBus low byte first."""

    def __init__(self) -> None:
        self._bus = os.open(f"/dev/i2c-{BUS}", os.O_RDWR)
        fcntl.ioctl(self._bus, I2C_SLAVE_FORCE, ADDRESS)
        self.power_step_w = 0.0
        self.current_step_a = 0.0

    def write(self, register: int, value: int) -> None:
        word = max(0, min(0xFFFF, value))
        data = (ctypes.c_uint16 * 17)((word & 0xFF) << 8 | word >> 8)
        fcntl.ioctl(self._bus, I2C_SMBUS, _Transfer(SMBUS_WRITE, register, SMBUS_WORD, ctypes.addressof(data)))

    def attach(self) -> None:
        """Let the kernel bind its ina2xx driver, and learn from it what a step of each register means."""
        self.show(0.0)
        if not list(HWMON.glob("*/power1_input")):
            NEW_DEVICE.write_text(f"ina226 0x{ADDRESS:02x}\n")
        deadline_s = time.monotonic() + 60
        while not (found := list(HWMON.glob("*/power1_input"))):
            if time.monotonic() > deadline_s:
                raise WattbitError("the kernel's ina2xx driver did not bind to the emulated chip")
            time.sleep(0.05)
        chip = found[0].parent
        (chip / "shunt_resistor").write_text(f"{round(SHUNT_OHM * 1e6)}\n")
        self.write(POWER, 1000)
        self.write(CURRENT, 1000)
        time.sleep(0.05)
        self.power_step_w = int((chip / "power1_input").read_text()) * 1e-9
        self.current_step_a = int((chip / "curr1_input").read_text()) * 1e-6

    def show(self, power_w: float) -> None:
        current_a = power_w / RAIL_V
        self.write(BUS_VOLTAGE, round(RAIL_V / BUS_STEP_V))
        self.write(SHUNT, round(current_a * SHUNT_OHM / SHUNT_STEP_V))
        if self.power_step_w:
            self.write(POWER, round(power_w / self.power_step_w))
            self.write(CURRENT, round(current_a / self.current_step_a))


def present_w(model: PowerModel) -> float:
    """What the board draws now, by the model."""
    try:
        activity = Activity.from_json(json.loads(ACTIVITY.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return model.idle_w
    return model.launch_w(activity.macs, activity.launch_s, activity.moved_bits)


def main() -> None:
    model, noise = PowerModel(), random.Random()
    chip = Ina226()
    chip.attach()
    while True:
        chip.show(present_w(model) + noise.gauss(0, model.noise_w))
        time.sleep(1 / model.rate_hz)


if __name__ == "__main__":
    main()
