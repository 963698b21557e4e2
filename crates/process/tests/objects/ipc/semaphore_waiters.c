// object: processes and threads waiting for System V semaphores
// status: captured
// note: their order may change
#include "object.h"

#include <pthread.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>

static int set;

static void step(int number, int by) {
    struct sembuf one = {number, by, 0};
    while (semop(set, &one, 1)) CHECK_EQUAL(errno, EINTR);
}

static void *answer(void *argument) {
    int base = (long)argument;
    for (;;) step(base, -1), step(base + 1, 1);
    return 0;
}

int main(void) {
    set = semget(IPC_PRIVATE, 4, 0600);
    CHECK(set >= 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, 0, answer, (void *)0) == 0);
    if (fork() == 0) answer((void *)2);
    ready();
    int rounds = 0;
    do {
        for (int i = 0; i < 20; i++, rounds++) step(0, 1), step(1, -1), step(2, 1), step(3, -1);
    } while (go_on());
    for (int i = 0; i < 4; i++) CHECK_EQUAL(semctl(set, i, GETVAL), 0);
    // Both answerers wait again, each for its own.
    while (semctl(set, 0, GETNCNT) != 1 || semctl(set, 2, GETNCNT) != 1) usleep(1000);
    CHECK(rounds > 0);
    PASS();
}
