// object: System V shared memory, found by its key
// status: captured
// note: key, id, size, mode and owner; times, the last user and the creator are not kept; huge pages are hidden
#include "object.h"
#include <sys/shm.h>

#define P 4096

int main(void) {
    int id = shmget(0x4f55544c, 40 * P + 100, IPC_CREAT | IPC_EXCL | 0640);
    CHECK(id >= 0);
    char *memory = shmat(id, 0, 0);
    CHECK(memory != (char *)-1);
    static unsigned char said[41];
    ready();
    unsigned step = 0;
    do {
        for (int i = 0; i < 3; i++) {
            unsigned page = (step * 3 + i * 7) % 41;
            memory[page * P + 99] = ++said[page];
        }
        CHECK_EQUAL(shmget(0x4f55544c, 0, 0), id);
        step++;
    } while (go_on());
    struct shmid_ds about;
    CHECK(shmctl(id, IPC_STAT, &about) == 0);
    CHECK_EQUAL(about.shm_segsz, 40 * P + 100);
    CHECK_EQUAL(about.shm_perm.mode & 0777, 0640);
    CHECK_EQUAL(about.shm_nattch, 1);
    CHECK(shmget(0x4f55544c, P, IPC_CREAT | IPC_EXCL | 0600) < 0 && errno == EEXIST);
    char *again = shmat(id, 0, SHM_RDONLY);
    CHECK(again != (char *)-1);
    for (int page = 0; page < 41; page++) CHECK_EQUAL((unsigned char)again[page * P + 99], said[page]);
    memory[7] = 's';
    CHECK_EQUAL(again[7], 's');
    CHECK(shmdt(again) == 0 && shmdt(memory) == 0 && shmctl(id, IPC_RMID, 0) == 0);
    CHECK(shmget(0x4f55544c, 0, 0) < 0 && errno == ENOENT);
    PASS();
}
