// A thread that does not come out of a function before it is told: `i` sends it in, `o` lets it out, `n` gives it a name that ends within a
// letter. `u` says how often the hook of a revert was called.
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>

static sem_t in, out, entered;
static int undone;

#ifdef FIXED
#define KEY 2
void outlive_patch_revert(void) { undone++; }
#else
#define KEY 1
#endif

__attribute__((noinline)) int value(int x) { __asm__ volatile("" : "+r"(x)); return x + KEY; }

__attribute__((noinline)) int serve(void) {
    sem_post(&entered);
    while (sem_wait(&out) != 0) {}
    return value(1) + KEY;
}

static void *run(void *argument) {
    for (;;) {
        while (sem_wait(&in) != 0) {}
        serve();
    }
    return argument;
}

int main(void) {
    sem_init(&in, 0, 0);
    sem_init(&out, 0, 0);
    sem_init(&entered, 0, 0);
    pthread_t thread;
    pthread_create(&thread, NULL, run, NULL);
    pthread_setname_np(thread, "server");
    char line[64];
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] == 'i') {
            sem_post(&in);
            while (sem_wait(&entered) != 0) {}
        }
        if (line[0] == 'o') sem_post(&out);
        if (line[0] == 'n') pthread_setname_np(thread, "server\xc3");
        printf("%d\n", line[0] == 'u' ? undone : value(0));
        fflush(stdout);
    }
    return 0;
}
