// object: System V shared memory, removed while attached, and its key given to another
// status: captured
#include "object.h"
#include <sys/shm.h>

#define P 4096

int main(void) {
    char *memory[3] = {0};
    unsigned char said[3] = {0};
    int id = -1;
    ready();
    unsigned step = 0;
    do {
        if (step % 5 == 0) {
            if (memory[0]) CHECK(shmdt(memory[0]) == 0);
            memory[0] = memory[1], memory[1] = memory[2];
            said[0] = said[1], said[1] = said[2];
            if (id >= 0) CHECK(shmctl(id, IPC_RMID, 0) == 0);
            CHECK((id = shmget(77, 4 * P, IPC_CREAT | IPC_EXCL | 0600)) >= 0);
            CHECK((memory[2] = shmat(id, 0, 0)) != (char *)-1);
            said[2] = 0;
        }
        int which = step % 3;
        if (memory[which]) memset(memory[which], ++said[which], 4 * P);
        step++;
    } while (go_on());
    CHECK_EQUAL(shmget(77, 0, 0), id);
    for (int i = 0; i < 3; i++)
        for (int at = 0; memory[i] && at < 4 * P; at++) CHECK_EQUAL((unsigned char)memory[i][at], said[i]);
    struct shmid_ds about;
    CHECK(shmctl(id, IPC_STAT, &about) == 0);
    CHECK_EQUAL(about.shm_nattch, 1);
    CHECK(!(about.shm_perm.mode & SHM_DEST));
    PASS();
}
