// Four threads count under a mutex and check each other; the main thread prints the total now and then.
// Every value on the stack, in the heap, in thread-local storage and in registers must survive.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <signal.h>
#include <xmmintrin.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long total, parts[4];
static __thread long mine;
static volatile sig_atomic_t signals;

static void on_signal(int sig) { (void)sig; signals++; }

static void *count(void *arg) {
    long id = (long)arg;
    char *heap = malloc(1 << 20);
    memset(heap, (int)id, 1 << 20);
    double x = id + 0.5;
    for (;;) {
        mine++;
        pthread_mutex_lock(&lock);
        total++;
        parts[id]++;
        pthread_mutex_unlock(&lock);
        x = x * 1.0 + 0.0;
        if (mine != parts[id]) { printf("BAD thread-local %ld != %ld\n", mine, parts[id]); fflush(stdout); _exit(1); }
        if (heap[(mine * 4099) & 0xfffff] != (char)id) { printf("BAD heap\n"); fflush(stdout); _exit(1); }
        if (x != id + 0.5) { printf("BAD float\n"); fflush(stdout); _exit(1); }
        if ((mine & 1023) == 0) usleep(100);
    }
    return 0;
}

int main(void) {
    signal(SIGUSR1, on_signal);
    pthread_t t[4];
    for (long i = 0; i < 4; i++) pthread_create(&t[i], 0, count, (void *)i);
    long last = 0;
    for (;;) {
        usleep(2000);
        pthread_mutex_lock(&lock);
        long sum = parts[0] + parts[1] + parts[2] + parts[3];
        if (sum != total || total < last) { printf("BAD sum %ld %ld\n", sum, total); fflush(stdout); _exit(1); }
        last = total;
        pthread_mutex_unlock(&lock);
        printf("total %ld signals %d pid %d\n", total, (int)signals, getpid());
        fflush(stdout);
    }
}
