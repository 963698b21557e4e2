// A thread sleeps for good; when told, the main thread sends it a signal that it does not let in.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

static void *sleeper(void *arg) {
    pthread_mutex_lock(&lock);
    for (;;) pthread_cond_wait(&never, &lock);
    return arg;
}

int main(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    pthread_t thread;
    pthread_create(&thread, 0, sleeper, 0);
    sigdelset(&set, SIGUSR2);
    printf("ready\n");
    fflush(stdout);
    int number;
    sigwait(&set, &number);
    pthread_kill(thread, SIGUSR2);
    printf("sent\n");
    fflush(stdout);
    for (;;) pause();
}
