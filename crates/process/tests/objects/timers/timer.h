// What the programs of POSIX timers have in common.
#ifndef TIMER_H
#define TIMER_H

#include "object.h"
#include <sys/syscall.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static volatile int timer_ticks, timer_signals, timer_strange;

// Counts what a timer has sent, and what was missed.
static void timer_count(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    timer_signals++;
    timer_ticks += 1 + info->si_overrun;
    if (info->si_code != SI_TIMER || info->si_value.sival_int != 4711)
        timer_strange = info->si_code == SI_TIMER ? info->si_value.sival_int : 1000 - info->si_code;
}

static void timer_handle(int signal) {
    struct sigaction action = {.sa_sigaction = timer_count, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(signal, &action, 0);
}

// The kernel's own id, which glibc does not show.
static int timer_make(clockid_t clock, int notify, int signal, int thread) {
    struct sigevent event = {.sigev_notify = notify, .sigev_signo = signal, .sigev_value.sival_int = 4711};
    event.sigev_notify_thread_id = thread;
    int id = -1;
    if (syscall(SYS_timer_create, clock, &event, &id)) FAIL("no timer");
    return id;
}

static void timer_arm(int id, int flags, double first, double interval) {
    struct itimerspec spec = {
        {(time_t)interval, (long)((interval - (time_t)interval) * 1e9)}, {(time_t)first, (long)((first - (time_t)first) * 1e9)}};
    if (syscall(SYS_timer_settime, id, flags, &spec, 0)) FAIL("timer %d cannot be set", id);
}

static double timer_left(int id) {
    struct itimerspec spec;
    if (syscall(SYS_timer_gettime, id, &spec)) FAIL("timer %d is not there", id);
    return spec.it_value.tv_sec + spec.it_value.tv_nsec / 1e9;
}

// All expirations of a periodic timer since `from` must have been counted, and no more.
static void timer_check_count(double from, double interval) {
    usleep(20000);
    double before = now();
    int ticks = timer_ticks;
    double most = (now() - from) / interval, least = (before - from) / interval;
    if (ticks > most + 1 || ticks < least - 5) FAIL("%d ticks, not %.1f", ticks, most);
    if (timer_strange) FAIL("%d signals with other contents", timer_strange);
}
#endif
