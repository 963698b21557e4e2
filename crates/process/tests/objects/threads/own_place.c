// object: a thread with a working directory and a umask of its own (`unshare(CLONE_FS)`)
// status: captured
// note: below the root `/`; of several that share one which is not their process's: refused; noticed where the kernel has BPF and its type information
#include "place.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>

static pthread_barrier_t set;

static void *work(void *argument) {
    int number = (int)(long)argument;
    const char *directory = number ? "/etc" : "/usr";
    CHECK(!unshare(CLONE_FS));
    CHECK(!chdir(directory));
    umask(number ? 0077 : 0007);
    pthread_barrier_wait(&set);
    while (!object_asked) {
        usleep(2000);
        here(directory, number ? 0077 : 0007);
    }
    if (number) CHECK(!access("passwd", R_OK));
    return 0;
}

int main(void) {
    pthread_t threads[2];
    pthread_barrier_init(&set, 0, 3);
    CHECK(!chdir("/tmp"));
    umask(0022);
    for (long number = 0; number < 2; number++) pthread_create(threads + number, 0, work, (void *)number);
    pthread_barrier_wait(&set);
    ready();
    while (go_on()) here("/tmp", 0022);
    for (int number = 0; number < 2; number++) pthread_join(threads[number], 0);
    here("/tmp", 0022);
    PASS();
}
