// object: the clock as the kernel's own page of code tells it (vdso), while it is asked all the time
// status: captured
// note: moved to where the workload has it; its size must be equal on both nodes
#include "object.h"
#include <sys/auxv.h>

int main(void) {
    unsigned long vdso = getauxval(AT_SYSINFO_EHDR);
    CHECK(vdso);
    unsigned long long asked = 0;
    struct timespec last = {0, 0}, time;
    double begun = now();
    ready();
    do {
        double until = now() + 0.002;
        while (now() < until && !object_asked) {
            clock_gettime(CLOCK_MONOTONIC, &time);
            CHECK(time.tv_sec > last.tv_sec || (time.tv_sec == last.tv_sec && time.tv_nsec >= last.tv_nsec));
            last = time;
            asked++;
        }
    } while (!object_asked);
    CHECK(asked > 1000 && now() - begun < 60);
    CHECK(!memcmp((void *)getauxval(AT_SYSINFO_EHDR), "\177ELF", 4));
    CHECK_EQUAL(getauxval(AT_SYSINFO_EHDR), vdso);
    PASS();
}
