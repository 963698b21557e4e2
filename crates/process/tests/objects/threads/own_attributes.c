// object: what differs between the threads of a process: user, groups, capabilities, scheduling, timer slack
// status: captured
// note: as far as the other host allows it
#include "object.h"
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static pthread_barrier_t set;

// Raw calls: glibc's change all threads.
static void *work(void *argument) {
    long number = (long)argument;
    cpu_set_t one;
    CHECK(!prctl(PR_SET_TIMERSLACK, 70000 + number));
    CHECK(!setpriority(PRIO_PROCESS, syscall(SYS_gettid), 3 + number));
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    if (number) CHECK(!sched_setaffinity(0, sizeof one, &one));
    gid_t groups[2] = {1000 + number, 2000 + number};
    CHECK(!syscall(SYS_setgroups, 2, groups));
    CHECK(!syscall(SYS_setresgid, 500 + number, 500 + number, 500 + number));
    if (number) CHECK(!syscall(SYS_setresuid, 600 + number, 600 + number, 600 + number));
    pthread_barrier_wait(&set);
    while (!object_asked) {
        usleep(2000);
        gid_t now[2];
        CHECK_EQUAL(prctl(PR_GET_TIMERSLACK), 70000 + number);
        CHECK_EQUAL(getpriority(PRIO_PROCESS, syscall(SYS_gettid)), 3 + number);
        CHECK_EQUAL(syscall(SYS_getuid), number ? 600 + number : 0);
        CHECK_EQUAL(syscall(SYS_getgid), 500 + number);
        CHECK(getgroups(2, now) == 2 && now[0] == groups[0] && now[1] == groups[1]);
        CHECK(!sched_getaffinity(0, sizeof one, &one));
        if (number) CHECK(CPU_COUNT(&one) == 1 && CPU_ISSET(0, &one));
    }
    return 0;
}

int main(void) {
    pthread_t threads[3];
    int usual = getpriority(PRIO_PROCESS, 0);
    pthread_barrier_init(&set, 0, 4);
    for (long number = 0; number < 3; number++) pthread_create(threads + number, 0, work, (void *)number);
    pthread_barrier_wait(&set);
    ready();
    while (go_on()) {
        CHECK_EQUAL(syscall(SYS_getuid), 0);
        CHECK_EQUAL(syscall(SYS_getgid), 0);
        CHECK_EQUAL(getpriority(PRIO_PROCESS, 0), usual);
    }
    for (int number = 0; number < 3; number++) pthread_join(threads[number], 0);
    PASS();
}
