// object: System V semaphores: values, ids, keys, rights
// status: captured
// note: who made the last operation, and when, is not kept
#include "object.h"

#include <sys/ipc.h>
#include <sys/sem.h>

int main(void) {
    // Some are removed, so that indices have holes and ids are not small.
    for (int i = 0; i < 5; i++) CHECK(semctl(semget(IPC_PRIVATE, 1, 0600), 0, IPC_RMID) == 0);
    int keyed = semget(0x5eed, 3, IPC_CREAT | IPC_EXCL | 0640), own = semget(IPC_PRIVATE, 100, 0600);
    CHECK(keyed > 0 && own > 0);
    unsigned short values[100], all[100] = {0};
    for (int i = 0; i < 100; i++) values[i] = i * 300;
    CHECK(semctl(own, 0, SETALL, values) == 0);
    int steps = 0;
    ready();
    do {
        struct sembuf up[2] = {{steps % 100, 1, 0}, {(steps + 1) % 100, 2, 0}};
        CHECK(semop(own, up, 2) == 0);
        values[steps % 100]++, values[(steps + 1) % 100] += 2;
        struct sembuf down = {1, 1, 0};
        CHECK(semop(keyed, &down, 1) == 0);
        // One comes and goes.
        int other = semget(0x700 + steps, 1, IPC_CREAT | 0600);
        CHECK(other >= 0);
        if (steps) CHECK(semctl(semget(0x700 + steps - 1, 1, 0), 0, IPC_RMID) == 0);
        steps++;
    } while (go_on());
    CHECK(semctl(own, 0, GETALL, all) == 0);
    CHECK(memcmp(all, values, sizeof all) == 0);
    CHECK_EQUAL(semget(0x5eed, 3, 0), keyed);
    CHECK_EQUAL(semctl(keyed, 1, GETVAL), steps);
    struct semid_ds about;
    CHECK(semctl(keyed, 0, IPC_STAT, &about) == 0);
    CHECK_EQUAL(about.sem_perm.mode & 0777, 0640);
    CHECK(semget(0x700 + steps - 2, 1, 0) == -1 && errno == ENOENT);
    PASS();
}
