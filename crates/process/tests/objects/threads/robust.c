// object: robust mutexes: an owner that dies after a failover
// status: captured
#include "object.h"
#include <pthread.h>

static pthread_mutex_t mutex;
static volatile int held;

static void *own(void *unused) {
    CHECK(!pthread_mutex_lock(&mutex));
    held = 1;
    while (!object_asked) usleep(1000);
    return unused;
}

int main(void) {
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&mutex, &attributes);
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, own, 0));
    while (!held) usleep(1000);
    ready();
    while (go_on()) CHECK_EQUAL(pthread_mutex_trylock(&mutex), EBUSY);
    CHECK_EQUAL(pthread_mutex_lock(&mutex), EOWNERDEAD);
    CHECK(!pthread_mutex_consistent(&mutex) && !pthread_mutex_unlock(&mutex));
    PASS();
}
