// object: a thread that is left where it was by the first one, which moves to a working directory and a umask of its own
// status: captured
// note: as it is of other threads with a place of their own
#include "place.h"
#include <pthread.h>
#include <sched.h>
#include <sys/wait.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t told = PTHREAD_COND_INITIALIZER;
static int is_over;

// Sleeps all the while: nobody has a reason to look at it again.
static void *stay(void *argument) {
    pthread_mutex_lock(&lock);
    while (!is_over) pthread_cond_wait(&told, &lock);
    pthread_mutex_unlock(&lock);
    here("/tmp", 0022);
    return argument;
}

static int move_after(int turns) {
    pthread_t thread;
    CHECK(!pthread_create(&thread, 0, stay, 0));
    while (turns-- && go_on()) here("/tmp", 0022);
    CHECK(!unshare(CLONE_FS));
    CHECK(!chdir("/usr"));
    umask(0077);
    while (go_on()) here("/usr", 0077);
    pthread_mutex_lock(&lock);
    is_over = 1;
    pthread_cond_signal(&told);
    pthread_mutex_unlock(&lock);
    pthread_join(thread, 0);
    here("/usr", 0077);
    return 0;
}

// When the first copies and the deaths are is not known here.
static const int turns[] = {4, 8, 14, 22, 32, 60, 200, 400};
enum { MOVERS = sizeof turns / sizeof *turns };

int main(void) {
    pid_t movers[MOVERS];
    CHECK(!chdir("/tmp"));
    umask(0022);
    signal(SIGUSR1, object_ask);
    for (int at = 0; at < MOVERS; at++)
        if (!(movers[at] = fork())) _exit(move_after(turns[at]));
    ready();
    while (go_on()) {}
    for (int at = 0; at < MOVERS; at++) {
        int status;
        CHECK(!kill(movers[at], SIGUSR1));
        CHECK_EQUAL(waitpid(movers[at], &status, 0), movers[at]);
        CHECK_EQUAL(status, 0);
    }
    PASS();
}
