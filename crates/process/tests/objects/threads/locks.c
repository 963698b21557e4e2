// object: threads with mutexes, conditions, rwlocks, semaphores, barriers and memory of their own
// status: captured
#include "object.h"
#include <pthread.h>
#include <semaphore.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static pthread_barrier_t barrier;
static sem_t semaphore;
static int turn, a, b, stop;
static __thread long own;

static void *work(void *number) {
    int mine = (int)(long)number;
    own = mine * 1000;
    for (long rounds = 1;; rounds++) {
        pthread_mutex_lock(&mutex);
        while (turn % 4 != mine && !stop) pthread_cond_wait(&turned, &mutex);
        turn++;
        int ends = stop;
        pthread_cond_broadcast(&turned);
        pthread_mutex_unlock(&mutex);
        if (ends) return 0;
        CHECK_EQUAL(++own, mine * 1000 + rounds);
        pthread_rwlock_wrlock(&lock);
        a++, b--;
        pthread_rwlock_unlock(&lock);
        pthread_rwlock_rdlock(&lock);
        CHECK_EQUAL(a, -b);
        pthread_rwlock_unlock(&lock);
        sem_wait(&semaphore);
        sem_post(&semaphore);
    }
}

_Noreturn static void *meet(void *count) {
    for (;;) {
        pthread_barrier_wait(&barrier);
        ++*(volatile int *)count;
        pthread_barrier_wait(&barrier);
    }
}

int main(void) {
    pthread_t threads[4], pair;
    static volatile int met;
    sem_init(&semaphore, 0, 2);
    pthread_barrier_init(&barrier, 0, 2);
    for (long i = 0; i < 4; i++) CHECK(!pthread_create(&threads[i], 0, work, (void *)i));
    CHECK(!pthread_create(&pair, 0, meet, (void *)&met));
    ready();
    for (int round = 1; go_on(); round++) {
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
        CHECK_EQUAL(met, round);
    }
    pthread_mutex_lock(&mutex);
    CHECK(turn > 100);
    stop = 1;
    pthread_cond_broadcast(&turned);
    pthread_mutex_unlock(&mutex);
    for (int i = 0; i < 4; i++) CHECK(!pthread_join(threads[i], 0));
    PASS();
}
