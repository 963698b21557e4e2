// object: a handler that is to run on the alternate stack (`SA_ONSTACK`), of threads that have none
// status: captured
// note: as every handler of Python is
#include "object.h"
#include <pthread.h>

static volatile int handled;

static void handler(int number) {
    (void)number;
    handled++;
}

static void has_none(void) {
    stack_t now;
    CHECK(!sigaltstack(0, &now) && now.ss_flags == SS_DISABLE);
}

static void *work(void *argument) {
    while (!object_asked) {
        usleep(2000);
        has_none();
        pthread_kill(pthread_self(), SIGUSR2);
    }
    return argument;
}

int main(void) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK | SA_RESTART};
    CHECK(!sigaction(SIGUSR2, &action, 0));
    pthread_t thread;
    pthread_create(&thread, 0, work, 0);
    ready();
    while (go_on()) {
        int before = handled;
        has_none();
        raise(SIGUSR2);
        CHECK(handled > before);
    }
    pthread_join(thread, 0);
    PASS();
}
