// object: names of threads, also those given by another thread; thread ids
// status: captured
#include "object.h"
#include <pthread.h>

static volatile int tids[4], over;

static void *live(void *at) {
    *(volatile int *)at = gettid();
    for (;;) {
        usleep(2000);
        CHECK_EQUAL(gettid(), *(volatile int *)at);
        if (over) return 0;
    }
}

int main(void) {
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) CHECK(!pthread_create(&threads[i], 0, live, (void *)&tids[i]));
    while (!tids[0] || !tids[1] || !tids[2] || !tids[3]) usleep(1000);
    int pid = getpid();
    ready();
    for (int round = 0; go_on(); round++) {
        char name[4][16], got[16];
        for (int i = 0; i < 4; i++) {
            snprintf(name[i], 16, "worker %d %d", i, round % 1000);
            CHECK(!pthread_setname_np(threads[i], name[i]));
        }
        usleep(1500);
        for (int i = 0; i < 4; i++) CHECK(!pthread_getname_np(threads[i], got, 16) && !strcmp(got, name[i]));
        CHECK_EQUAL(getpid(), pid);
    }
    over = 1;
    for (int i = 0; i < 4; i++) CHECK(!pthread_join(threads[i], 0));
    PASS();
}
