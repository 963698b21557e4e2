// object: a lock and a condition in shared memory, used by two processes
// status: captured
// note: process-shared mutexes, condition variables and semaphores
#include "object.h"
#include <pthread.h>
#include <sys/mman.h>

struct place {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    uint64_t asked, answered;
};

int main(void) {
    struct place *place = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED);
    pthread_mutexattr_t lock;
    pthread_condattr_t condition;
    pthread_mutexattr_init(&lock);
    pthread_mutexattr_setpshared(&lock, PTHREAD_PROCESS_SHARED);
    pthread_condattr_init(&condition);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    pthread_mutex_init(&place->lock, &lock);
    pthread_cond_init(&place->changed, &condition);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child) {
        pthread_mutex_lock(&place->lock);
        for (;;) {
            while (place->answered == place->asked) pthread_cond_wait(&place->changed, &place->lock);
            place->answered++;
            pthread_cond_broadcast(&place->changed);
        }
    }
    ready();
    uint64_t count = 0;
    do {
        pthread_mutex_lock(&place->lock);
        place->asked++;
        count++;
        pthread_cond_broadcast(&place->changed);
        while (place->answered != place->asked) pthread_cond_wait(&place->changed, &place->lock);
        CHECK_EQUAL(place->answered, count);
        pthread_mutex_unlock(&place->lock);
    } while (go_on());
    PASS();
}
