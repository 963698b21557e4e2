// Threads that wait in `epoll_wait` and count how often it was interrupted. One that was made before them waits, from `v` to `o`, for a
// child that shares its memory: a sleep that nothing interrupts.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { WAITERS = 8 };

static sem_t go;
static int ends[2], interrupted;

#ifdef FIXED
__attribute__((noinline)) int value(void) { return 2; }
#else
__attribute__((noinline)) int value(void) { return 1; }
#endif

static void *hold(void *argument) {
    for (;;) {
        while (sem_wait(&go) != 0) {}
        if (vfork() == 0) {
            char byte;
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            while (read(ends[0], &byte, 1) != 1) {}
            _exit(0);
        }
    }
    return argument;
}

static void *wait_for_nothing(void *argument) {
    struct epoll_event event;
    int epoll = epoll_create1(0);
    for (;;)
        if (epoll_wait(epoll, &event, 1, -1) < 0 && errno == EINTR) __atomic_fetch_add(&interrupted, 1, __ATOMIC_RELAXED);
    return argument;
}

int main(void) {
    pthread_t thread;
    sem_init(&go, 0, 0);
    if (pipe(ends) != 0) return 1;
    pthread_create(&thread, NULL, hold, NULL);
    pthread_setname_np(thread, "holder");
    for (int i = 0; i < WAITERS; i++) pthread_create(&thread, NULL, wait_for_nothing, NULL);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] == 'v') sem_post(&go);
        if (line[0] == 'o' && write(ends[1], "x", 1) != 1) return 1;
        printf("%d, %d interrupted\n", value(), __atomic_load_n(&interrupted, __ATOMIC_RELAXED));
        fflush(stdout);
    }
    return 0;
}
