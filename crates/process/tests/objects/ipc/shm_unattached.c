// object: System V shared memory that is attached only for moments
// status: captured
#include "object.h"
#include <sys/shm.h>

#define P 4096

int main(void) {
    int ids[3];
    for (int i = 0; i < 3; i++) CHECK((ids[i] = shmget(100 + i, 8 * P, IPC_CREAT | 0600)) >= 0);
    static unsigned char said[3][8];
    ready();
    unsigned step = 0;
    do {
        int i = step % 3, page = step * 5 % 8;
        char *memory = shmat(ids[i], 0, 0);
        CHECK(memory != (char *)-1);
        memory[page * P] = ++said[i][page];
        CHECK(shmdt(memory) == 0);
        // One goes, and another comes with another id.
        if (step % 20 == 19) {
            CHECK(shmctl(ids[1], IPC_RMID, 0) == 0);
            CHECK((ids[1] = shmget(101, 8 * P, IPC_CREAT | IPC_EXCL | 0600)) >= 0);
            memset(said[1], 0, 8);
        }
        step++;
    } while (go_on());
    for (int i = 0; i < 3; i++) {
        CHECK_EQUAL(shmget(100 + i, 0, 0), ids[i]);
        struct shmid_ds about;
        CHECK(shmctl(ids[i], IPC_STAT, &about) == 0);
        CHECK_EQUAL(about.shm_nattch, 0);
        char *memory = shmat(ids[i], 0, SHM_RDONLY);
        CHECK(memory != (char *)-1);
        for (int page = 0; page < 8; page++) CHECK_EQUAL((unsigned char)memory[page * P], said[i][page]);
    }
    PASS();
}
