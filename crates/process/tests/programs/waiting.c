// Three threads sleep until the main thread wants something of them, which is rarely: now and then it gives one of them
// work, waits for the answer and checks it. One of them blocks a signal that it is sent while it sleeps.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wanted = PTHREAD_COND_INITIALIZER, answered = PTHREAD_COND_INITIALIZER;
static long question[3], answer[3], handled[3];

static void *serve(void *arg) {
    long id = (long)arg;
    long seen = 0;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, 0);
    pthread_mutex_lock(&lock);
    for (;;) {
        while (question[id] == seen) pthread_cond_wait(&wanted, &lock);
        seen = question[id];
        sigset_t waiting;
        sigpending(&waiting);
        // Sent to this thread while it slept, before its fifth question; taken at its tenth.
        int has = sigismember(&waiting, SIGUSR2);
        if (has != (handled[id] >= 4 && handled[id] < 9)) { printf("BAD signal %d at %ld\n", has, handled[id]); fflush(stdout); _exit(1); }
        if (++handled[id] == 9) { int sig; sigwait(&set, &sig); }
        answer[id] = seen * 3 + id;
        pthread_cond_broadcast(&answered);
    }
    return 0;
}

int main(void) {
    pthread_t t[3];
    for (long i = 0; i < 3; i++) pthread_create(&t[i], 0, serve, (void *)i);
    long asked = 0;
    for (;;) {
        for (int i = 0; i < 20; i++) { usleep(1000); printf("total %ld \n", asked); fflush(stdout); }
        long id = asked % 3;
        pthread_mutex_lock(&lock);
        if (handled[id] == 4) pthread_kill(t[id], SIGUSR2);
        pthread_mutex_unlock(&lock);
        usleep(8000);
        pthread_mutex_lock(&lock);
        question[id] = ++asked;
        pthread_cond_broadcast(&wanted);
        while (answer[id] != asked * 3 + id) pthread_cond_wait(&answered, &lock);
        pthread_mutex_unlock(&lock);
    }
}
