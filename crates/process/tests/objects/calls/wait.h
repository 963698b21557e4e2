// What the programs of waiting calls have in common: a thread waits once, over both failovers, while the first thread is busy;
// the wait must end when it is over and not when it would be if it had begun anew.
#ifndef WAIT_H
#define WAIT_H

#include "object.h"
#include <pthread.h>

#define LIMIT 1.5
// A wait that began anew at a failover is later than that.
#define SLACK 0.3

static struct timespec limit_left(void) {
    return (struct timespec){1, 500000000};
}

static volatile int wait_over;
static double wait_from, wait_to;

// Makes the call, with a limit of LIMIT seconds, and checks what it returns.
static void wait_once(void);

static void *wait_in_thread(void *unused) {
    (void)unused;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, 0);
    wait_from = now();
    wait_once();
    wait_to = now();
    wait_over = 1;
    return 0;
}

static int wait_main(void) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, wait_in_thread, 0));
    ready();
    // How long this machine keeps a thread from running when nothing fails over any more.
    double gap = 0, last = now();
    while (go_on() || !wait_over) {
        double time = now();
        CHECK(time >= last);
        if (time - wait_from > LIMIT - 0.4 && time - last > gap) gap = time - last;
        last = time;
        if (object_asked) usleep(2000);
    }
    double took = wait_to - wait_from;
    if (took < LIMIT) FAIL("it ended after %.6f s, early", took);
    if (took > LIMIT + SLACK + gap) FAIL("it ended after %.3f s", took);
    PASS();
}

#define WAIT_MAIN \
    int main(void) { return wait_main(); }
#endif
