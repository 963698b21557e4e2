// Two functions that call each other and must agree: the key that one says is the one that the other expects. Four threads call
// them, and are elsewhere most of the time.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef FIXED
#define KEY 2
#else
#define KEY 1
#endif

static volatile long wrong, calls;
static volatile int turns = 2000, elsewhere = 40000;

__attribute__((noinline)) static void spend(int turns) {
    for (volatile int i = 0; i < turns; i++) {}
}

int second(int depth, int key);

__attribute__((noinline)) int first(int depth) {
    spend(turns);
    return second(depth, KEY);
}

__attribute__((noinline)) int second(int depth, int key) {
    if (key != KEY) __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
    spend(turns);
    int below = depth > 0 ? first(depth - 1) : 0;
    return below == 0 || below == KEY ? KEY : -1;
}

static void *run(void *argument) {
    for (;;) {
        if (first(2) < 0) __atomic_fetch_add(&wrong, 1, __ATOMIC_RELAXED);
        __atomic_fetch_add(&calls, 1, __ATOMIC_RELAXED);
        spend(elsewhere);
    }
    return argument;
}

int main(void) {
    pthread_t thread;
    for (int i = 0; i < 4; i++) pthread_create(&thread, NULL, run, NULL);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        printf("%ld %d %ld\n", wrong, first(0), calls);
        fflush(stdout);
    }
    return 0;
}
