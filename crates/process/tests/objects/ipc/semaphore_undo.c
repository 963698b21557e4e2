// object: SEM_UNDO of System V semaphores: what a process that is killed has taken is given back, and the other way round
// status: captured
// note: up to four sets of up to 32 semaphores in a process; PHP's sem_acquire and Apache's `Mutex sysvsem` use it
#include "object.h"

#include <pthread.h>
#include <sys/ipc.h>
#include <sys/sem.h>
#include <sys/wait.h>

static int set, second;

static void operate(int id, int number, int change) {
    struct sembuf operation = {number, change, SEM_UNDO};
    while (semop(id, &operation, 1))
        if (errno != EINTR) _exit(3);
}

static void *works(void *unused) {
    for (;; usleep(2000)) {
        operate(set, 0, -1);
        operate(set, 0, 1);
    }
    return unused;
}

int main(void) {
    unsigned short values[3] = {3, 10, 0};
    set = semget(IPC_PRIVATE, 3, 0600);
    second = semget(IPC_PRIVATE, 1, 0600);
    CHECK(semctl(set, 0, SETALL, values) == 0 && semctl(second, 0, SETVAL, 32000) == 0);
    // Takes and keeps: 1 and 4; adds and keeps: 2. A thread of it takes and gives all the time.
    pid_t child = fork();
    if (!child) {
        pthread_t thread;
        operate(set, 0, -1);
        operate(set, 1, -4);
        operate(set, 2, 2);
        operate(second, 0, -31000);
        if (pthread_create(&thread, 0, works, 0)) _exit(4);
        for (;; usleep(2000)) {
            operate(set, 1, -1);
            operate(set, 1, 1);
        }
    }
    // Another one, of which the kernel has to give back very much as well.
    pid_t other = fork();
    if (!other) {
        operate(second, 0, -900);
        for (;;) pause();
    }
    while (semctl(second, 0, GETVAL) != 100 || semctl(set, 2, GETVAL) != 2) usleep(1000);
    ready();
    do {
        operate(set, 0, -1);
        operate(set, 0, 1);
        int held = semctl(set, 0, GETVAL), more = semctl(set, 1, GETVAL);
        CHECK(held >= 1 && held <= 2 && more >= 5 && more <= 6);
        CHECK_EQUAL(semctl(set, 2, GETVAL), 2);
        CHECK_EQUAL(semctl(second, 0, GETVAL), 100);
        int status;
        CHECK_EQUAL(waitpid(-1, &status, WNOHANG), 0);
    } while (go_on());
    CHECK(!kill(other, SIGKILL) && waitpid(other, 0, 0) == other);
    CHECK_EQUAL(semctl(second, 0, GETVAL), 1000);
    CHECK(!kill(child, SIGKILL) && waitpid(child, 0, 0) == child);
    CHECK_EQUAL(semctl(set, 0, GETVAL), 3);
    CHECK_EQUAL(semctl(set, 1, GETVAL), 10);
    CHECK_EQUAL(semctl(set, 2, GETVAL), 0);
    CHECK_EQUAL(semctl(second, 0, GETVAL), 32000);
    PASS();
}
