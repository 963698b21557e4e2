// object: `pthread_cond_timedwait`, `sem_timedwait` and other waits for a `futex` until a time
// status: captured
// note: exact, by the workload's clocks
#include "calls/wait.h"

static void wait_once(void) {
    static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_t condition;
    pthread_cond_init(&condition, &attributes);
    struct timespec end, limit = limit_left();
    clock_gettime(CLOCK_MONOTONIC, &end);
    end.tv_sec += limit.tv_sec, end.tv_nsec += limit.tv_nsec;
    if (end.tv_nsec >= 1000000000) end.tv_sec++, end.tv_nsec -= 1000000000;
    pthread_mutex_lock(&mutex);
    CHECK_EQUAL(pthread_cond_timedwait(&condition, &mutex, &end), ETIMEDOUT);
}

WAIT_MAIN
