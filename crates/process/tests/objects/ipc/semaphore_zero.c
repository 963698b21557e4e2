// object: waiting for a System V semaphore to become zero, and one of IPC_NOWAIT
// status: captured
// note:
#include "object.h"

#include <pthread.h>
#include <sys/ipc.h>
#include <sys/sem.h>

static int set;
static volatile int seen;

static void *wait_for_zero(void *unused) {
    for (;;) {
        struct sembuf zero[2] = {{0, 0, 0}, {1, -1, 0}};
        while (semop(set, zero, 2)) CHECK_EQUAL(errno, EINTR);
        seen++;
    }
    return unused;
}

int main(void) {
    set = semget(IPC_PRIVATE, 2, 0600);
    CHECK(semctl(set, 0, SETVAL, 3) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, wait_for_zero, 0) == 0);
    int rounds = 0;
    ready();
    do {
        struct sembuf down = {0, -3, 0}, no = {0, -1, IPC_NOWAIT}, one = {1, 1, 0}, up = {0, 3, 0};
        CHECK(semop(set, &one, 1) == 0);
        CHECK_EQUAL(seen, rounds);
        CHECK(semop(set, &down, 1) == 0);
        while (seen == rounds) usleep(100);
        rounds++;
        CHECK(semop(set, &no, 1) == -1 && errno == EAGAIN);
        CHECK(semop(set, &up, 1) == 0);
    } while (go_on());
    PASS();
}
