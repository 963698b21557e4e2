// object: a SIGTRAP sent to the process, which all threads block and one waits for (`sigwait`)
// status: captured
// note: who sent one that comes at the moment of a checkpoint is not kept
#include "object.h"
#include <pthread.h>

static volatile long taken;
static sigset_t traps;

static void *take(void *argument) {
    for (;;) {
        int number;
        // Meanwhile one is there that nobody takes.
        usleep(3000);
        CHECK(!sigwait(&traps, &number));
        CHECK_EQUAL(number, SIGTRAP);
        taken++;
    }
    return argument;
}

int main(void) {
    sigemptyset(&traps);
    sigaddset(&traps, SIGTRAP);
    CHECK(!pthread_sigmask(SIG_BLOCK, &traps, 0));
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, take, 0));
    ready();
    while (go_on()) {
        long before = taken;
        CHECK(!kill(getpid(), SIGTRAP));
        for (int rests = 0; taken == before; rests++) {
            if (rests > 10000) FAIL("a signal has not come after %ld", before);
            usleep(1000);
        }
    }
    PASS();
}
