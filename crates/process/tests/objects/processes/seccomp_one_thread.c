// object: a filter that only one thread of a process has, installed while captured
// status: captured
#include "object.h"
#include "seccomp.h"
#include <pthread.h>

static volatile int begin, beats, broken;

static int denied(long number, int with) {
    errno = 0;
    return syscall(number) == -1 && errno == with;
}

static void *specially(void *unused) {
    (void)unused;
    while (!begin) usleep(1000);
    if (FILTER(0, IF_CALL(SYS_getgid, WITH_ERROR(71)), OTHERWISE(SECCOMP_RET_ALLOW))) broken = 1;
    for (;; usleep(1000)) {
        if (!denied(SYS_getppid, 70) || !denied(SYS_getgid, 71)) broken = 2;
        beats++;
    }
    return 0;
}

int main(void) {
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!FILTER(0, IF_CALL(SYS_getppid, WITH_ERROR(70)), OTHERWISE(SECCOMP_RET_ALLOW)));
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, specially, 0));
    ready();
    int step = 0;
    do {
        if (++step == 5) begin = 1;
        CHECK_EQUAL(broken, 0);
        CHECK(denied(SYS_getppid, 70) && getgid() == 0);
    } while (go_on());
    int before = beats;
    while (beats < before + 3) usleep(1000);
    CHECK_EQUAL(broken, 0);
    PASS();
}
