// object: `sigsuspend`, `pause`, `sigwaitinfo` and their masks
// status: captured
#include "object.h"
#include <pthread.h>

static volatile int got;
static pthread_t first;

static void handle(int signal) {
    (void)signal;
    got++;
}

static void *send(void *unused) {
    int was_asked;
    do {
        // Once more after the question, which this thread may have got while the first was about to wait.
        was_asked = object_asked;
        usleep(3000);
        pthread_kill(first, SIGUSR2);
    } while (!was_asked);
    return unused;
}

int main(void) {
    signal(SIGUSR2, handle);
    sigset_t blocked, open, now_blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGUSR2);
    sigaddset(&blocked, SIGHUP);
    sigprocmask(SIG_BLOCK, &blocked, 0);
    sigfillset(&open);
    sigdelset(&open, SIGUSR2);
    sigdelset(&open, SIGUSR1);
    first = pthread_self();
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, send, 0));
    ready();
    while (!object_asked) {
        int before = got;
        CHECK(sigsuspend(&open) == -1 && errno == EINTR);
        CHECK(got > before || object_asked);
        sigprocmask(SIG_BLOCK, 0, &now_blocked);
        CHECK(sigismember(&now_blocked, SIGUSR2) && sigismember(&now_blocked, SIGHUP));
        CHECK(!sigismember(&now_blocked, SIGTERM));
    }
    PASS();
}
