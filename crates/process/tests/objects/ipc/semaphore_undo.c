// object: SEM_UNDO of System V semaphores
// status: refused: SEM_UNDO
// note: what the kernel would take back at the end of a process is not captured; Apache: `Mutex pthread`
#include "object.h"

#include <sys/ipc.h>
#include <sys/sem.h>

int main(void) {
    int set = semget(IPC_PRIVATE, 1, 0600);
    CHECK(semctl(set, 0, SETVAL, 1) == 0);
    ready();
    do {
        struct sembuf take = {0, -1, SEM_UNDO}, give = {0, 1, SEM_UNDO};
        CHECK(semop(set, &take, 1) == 0 && semop(set, &give, 1) == 0);
    } while (go_on());
    CHECK_EQUAL(semctl(set, 0, GETVAL), 1);
    PASS();
}
