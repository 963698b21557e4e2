// object: System V shared memory, removed and still attached by two processes
// status: captured
// note: it goes with its last user
#include "object.h"
#include <sys/shm.h>

#define P 4096

int main(void) {
    int id = shmget(IPC_PRIVATE, 16 * P, IPC_CREAT | 0600);
    CHECK(id >= 0);
    volatile uint64_t *memory = shmat(id, 0, 0);
    CHECK(memory != (void *)-1);
    CHECK(shmctl(id, IPC_RMID, 0) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (!child)
        for (;;) {
            memory[512] = memory[0];
            go_on();
        }
    ready();
    uint64_t step = 0;
    do {
        memory[0] = ++step;
        memory[(2 + step % 14) * 512] = step;
        struct shmid_ds about;
        CHECK(shmctl(id, IPC_STAT, &about) == 0);
        CHECK_EQUAL(about.shm_nattch, 2);
        CHECK(about.shm_perm.mode & SHM_DEST);
    } while (go_on());
    double begun = now();
    while (memory[512] != step) CHECK(now() - begun < 5);
    for (uint64_t at = step > 14 ? step - 13 : 1; at <= step; at++) CHECK_EQUAL(memory[(2 + at % 14) * 512], at);
    CHECK(kill(child, SIGKILL) == 0);
    struct shmid_ds about;
    while (shmctl(id, IPC_STAT, &about) == 0 && about.shm_nattch == 2) CHECK(now() - begun < 5);
    CHECK(shmdt((void *)memory) == 0);
    CHECK(shmctl(id, IPC_STAT, &about) < 0);
    PASS();
}
