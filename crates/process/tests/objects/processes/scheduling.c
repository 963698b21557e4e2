// object: scheduling policy, priority, nice value, affinity, I/O priority
// status: captured
// note: as far as the other host has the processors and allows it
#include "object.h"
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>

int main(void) {
    struct sched_param none = {0};
    CHECK(!sched_setscheduler(0, SCHED_BATCH, &none));
    cpu_set_t one, got;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    CHECK(!sched_setaffinity(0, sizeof one, &one));
    CHECK(!syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6));
    ready();
    for (int round = 0; go_on(); round++) {
        int nice = 1 + round % 9;
        CHECK(!setpriority(PRIO_PROCESS, 0, nice));
        usleep(1000);
        CHECK_EQUAL(getpriority(PRIO_PROCESS, 0), nice);
        CHECK_EQUAL(sched_getscheduler(0), SCHED_BATCH);
        CHECK(!sched_getaffinity(0, sizeof got, &got) && CPU_EQUAL(&one, &got));
        CHECK_EQUAL(syscall(SYS_ioprio_get, 1, 0), 2 << 13 | 6);
    }
    PASS();
}
