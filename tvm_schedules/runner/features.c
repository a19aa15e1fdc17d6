// Compiled for the plainest CPU of its architecture, with -DWB_CORE='"name"' and -DWB_FEATURES='F(name) ...' as the kernel
// names them in /proc/cpuinfo: what runs before anything that needs a feature.
#include "matrix.h"

#ifndef __x86_64__
#include <sys/auxv.h>
enum { neon = 1 << 12, asimd = 1 << 1, asimddp = 1 << 20 };  // the kernel's hardware capabilities: 32-bit, 64-bit ARM
#define HAS(name) (getauxval(AT_HWCAP) & name)
#else
#define HAS(name) __builtin_cpu_supports(#name)
#endif

const char *wb_core(void) { return WB_CORE; }

const char *wb_missing_feature(void) {
#define F(name) if (!HAS(name)) return #name;
    WB_FEATURES
#undef F
    return NULL;
}
