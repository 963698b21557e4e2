// Sixteen threads that do nothing but call the function. Each checks what it gets: 1 or 2, nothing else, and that its
// vector registers keep their values.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef FIXED
__attribute__((noinline)) int value(int x) { __asm__ volatile("" : "+r"(x)); return x + 2; }
#else
__attribute__((noinline)) int value(int x) { __asm__ volatile("" : "+r"(x)); return x + 1; }
#endif

#define THREADS 16

static volatile long wrong, calls[THREADS], last[THREADS];

static void *run(void *argument) {
    long self = (long)argument;
    double sum = self;
    for (int i = 0;; i++) {
        int got = value(i);
        sum += 1.0;
        if (got != i + 1 && got != i + 2) wrong++;
        if (i == 1000) { if (sum != self + 1001.0) wrong++; sum = self; i = -1; }
        last[self] = got - i;
        calls[self]++;
    }
    return NULL;
}

int main(void) {
    pthread_t thread;
    for (long i = 0; i < THREADS; i++) pthread_create(&thread, NULL, run, (void *)i);
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        printf("%ld %d", wrong, value(0));
        for (int i = 0; i < THREADS; i++) printf(" %ld", calls[i]);
        puts("");
        fflush(stdout);
    }
    return 0;
}
