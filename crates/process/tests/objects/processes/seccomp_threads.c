// object: filters of threads of one process: on all at once (SECCOMP_FILTER_FLAG_TSYNC), and one that only one thread has
// status: captured
#include "object.h"
#include "seccomp.h"
#include <pthread.h>

static volatile int plain, broken, parked;
static pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;

static int denied(long number, int with) {
    errno = 0;
    return syscall(number) == -1 && errno == with;
}

static void *plainly(void *unused) {
    (void)unused;
    for (;; usleep(1000)) {
        if (!denied(SYS_getppid, 70) || denied(SYS_getgid, 71)) broken = 4;
        plain++;
    }
    return 0;
}

// Waits for long in one call.
static void *waits(void *unused) {
    (void)unused;
    parked = 1;
    pthread_mutex_lock(&held);
    parked = denied(SYS_getppid, 70) && denied(SYS_getuid, 73) ? 2 : 3;
    return 0;
}

int main(void) {
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    pthread_mutex_lock(&held);
    pthread_t threads[3];
    CHECK(!pthread_create(&threads[1], 0, waits, 0));
    CHECK(!FILTER(SECCOMP_FILTER_FLAG_TSYNC, IF_CALL(SYS_getppid, WITH_ERROR(70)), OTHERWISE(SECCOMP_RET_ALLOW)));
    CHECK(!pthread_create(&threads[0], 0, plainly, 0));
    ready();
    int step = 0;
    do {
        CHECK_EQUAL(broken, 0);
        CHECK(denied(SYS_getppid, 70) && getgid() == 0);
        // On all threads, also those that have waited all the time: they share what they have.
        if (++step == 5) CHECK_EQUAL(FILTER(SECCOMP_FILTER_FLAG_TSYNC, IF_CALL(SYS_getuid, WITH_ERROR(73)), OTHERWISE(SECCOMP_RET_ALLOW)), 0);
        if (step >= 5) CHECK(denied(SYS_getuid, 73));
    } while (go_on());
    // After two failovers they still share, and one can go on.
    CHECK_EQUAL(FILTER(SECCOMP_FILTER_FLAG_TSYNC, IF_CALL(SYS_getsid, WITH_ERROR(74)), OTHERWISE(SECCOMP_RET_ALLOW)), 0);
    pthread_mutex_unlock(&held);
    CHECK(!pthread_join(threads[1], 0));
    CHECK_EQUAL(parked, 2);
    int before = plain;
    while (plain < before + 3) usleep(1000);
    CHECK_EQUAL(broken, 0);
    PASS();
}
