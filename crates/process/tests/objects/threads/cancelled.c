// object: cancellation of threads that wait
// status: captured
#include "object.h"
#include <pthread.h>

static volatile int cleaned;

static void clean(void *unused) {
    (void)unused;
    cleaned++;
}

// The question for the verdict is the first thread's: it would end a sleep like any signal.
static void not_asked(void) {
    sigset_t asks;
    sigemptyset(&asks);
    sigaddset(&asks, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &asks, 0);
}

static void *sleep_long(void *unused) {
    not_asked();
    pthread_cleanup_push(clean, 0);
    sleep(1000);
    pthread_cleanup_pop(0);
    return unused;
}

int main(void) {
    pthread_t old;
    CHECK(!pthread_create(&old, 0, sleep_long, 0));
    ready();
    for (int round = 1; go_on(); round++) {
        pthread_t thread;
        void *result;
        CHECK(!pthread_create(&thread, 0, sleep_long, 0));
        usleep(1000 + round % 7 * 1000);
        CHECK(!pthread_cancel(thread) && !pthread_join(thread, &result));
        CHECK(result == PTHREAD_CANCELED);
        CHECK(cleaned <= round);
    }
    int before = cleaned;
    CHECK(!pthread_cancel(old) && !pthread_join(old, 0));
    CHECK_EQUAL(cleaned, before + 1);
    PASS();
}
