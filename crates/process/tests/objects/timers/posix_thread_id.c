// object: POSIX timer for one thread (SIGEV_THREAD_ID)
// status: captured
#include "timers/timer.h"
#include <pthread.h>

static volatile int tid, elsewhere;

static void here(int signal, siginfo_t *info, void *context) {
    if (gettid() != tid) elsewhere++;
    timer_count(signal, info, context);
}

_Noreturn static void *receive(void *unused) {
    (void)unused;
    tid = gettid();
    for (;;) usleep(500);
}

int main(void) {
    struct sigaction action = {.sa_sigaction = here, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGUSR2, &action, 0);
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, receive, 0));
    while (!tid) usleep(100);
    int id = timer_make(CLOCK_MONOTONIC, SIGEV_THREAD_ID, SIGUSR2, tid);
    double from = now();
    timer_arm(id, 0, 0.01, 0.01);
    ready();
    while (go_on()) {}
    timer_check_count(from, 0.01);
    CHECK_EQUAL(elsewhere, 0);
    PASS();
}
