// object: calls that a handler interrupts: EINTR, and what `nanosleep`, `clock_nanosleep`, `select`, `pselect6`, `ppoll` say is left
// status: captured
#include "object.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>
#include <sys/time.h>

// Seconds after which the signal comes, and what each call would wait without it.
#define SOON 0.04
#define LONG 5

static void handle(int signal) {
    (void)signal;
}

static double seconds(struct timespec time) {
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(void) {
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    sigaction(SIGALRM, &action, 0);
    timer_t timer;
    CHECK(!timer_create(CLOCK_MONOTONIC, &event, &timer));
    int ends[2], set = epoll_create1(0);
    CHECK(!pipe(ends));
    ready();
    for (int round = 0; !object_asked; round++) {
        struct timespec wish = {LONG, 0}, left = {LONG, 0};
        struct timeval other = {LONG, 0};
        struct epoll_event happened;
        struct pollfd entry = {ends[0], POLLIN, 0};
        fd_set reads;
        FD_ZERO(&reads);
        FD_SET(ends[0], &reads);
        double when = now() + SOON;
        struct itimerspec at = {.it_value = {(time_t)when, (when - (time_t)when) * 1e9}};
        CHECK(!timer_settime(timer, TIMER_ABSTIME, &at, 0));
        // The supervisor is told of that call, so that a stop for a checkpoint is likely just behind it.
        usleep(1000);
        double from = now();
        if (from > when - 0.005) continue;
        int result = 0, kind = round % 7, tells = 1;
        switch (kind) {
        case 0: result = nanosleep(&wish, &left); break;
        // It returns its error.
        case 1: result = (errno = clock_nanosleep(CLOCK_MONOTONIC, 0, &wish, &left)) ? -1 : 0; break;
        case 2: result = syscall(SYS_ppoll, &entry, 1, &left, 0, 8); break;
        case 3: result = syscall(SYS_pselect6, ends[0] + 1, &reads, 0, 0, &left, 0); break;
        case 4:
            result = select(ends[0] + 1, &reads, 0, 0, &other);
            left = (struct timespec){other.tv_sec, other.tv_usec * 1000};
            break;
        case 5: tells = 0; result = epoll_wait(set, &happened, 1, LONG * 1000); break;
        case 6: tells = 0; result = poll(&entry, 1, LONG * 1000); break;
        }
        double took = now() - from, slept = LONG - seconds(left);
        if (object_asked) break;
        if (result != -1 || errno != EINTR) FAIL("call %d gives %d", kind, result);
        if (took > LONG - 1) FAIL("call %d took %f", kind, took);
        // Of the first two the kernel knows when they end; of the others only what was left when they were interrupted, and that
        // is seen when the tracer comes to it.
        double least = when - from - (kind < 2 ? 0.002 : 0.02);
        if (tells && (slept > took + 0.001 || slept < least))
            FAIL("call %d slept %f of %f, for at least %f", kind, slept, took, least);
    }
    PASS();
}
