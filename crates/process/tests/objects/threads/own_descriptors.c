// object: a thread with descriptors of its own (`unshare(CLONE_FILES)`)
// status: refused: CLONE_FILES
// note: let the threads of a process share their descriptors, or use processes; noticed where the kernel has BPF and its type information
#include "object.h"
#include <pthread.h>
#include <sched.h>

static pthread_barrier_t set;

static void *work(void *argument) {
    CHECK(!unshare(CLONE_FILES));
    pthread_barrier_wait(&set);
    while (!object_asked) usleep(2000);
    return argument;
}

int main(void) {
    pthread_t thread;
    pthread_barrier_init(&set, 0, 2);
    pthread_create(&thread, 0, work, 0);
    pthread_barrier_wait(&set);
    ready();
    while (go_on()) {}
    PASS();
}
