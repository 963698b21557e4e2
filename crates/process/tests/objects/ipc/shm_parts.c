// object: System V shared memory, attached twice, read-only, partly unmapped
// status: captured
#include "object.h"
#include <sys/mman.h>
#include <sys/shm.h>

#define P 4096

int main(void) {
    int id = shmget(IPC_PRIVATE, 32 * P, IPC_CREAT | 0600);
    CHECK(id >= 0);
    char *all = shmat(id, 0, 0), *read_only = shmat(id, 0, SHM_RDONLY), *part = shmat(id, 0, 0);
    CHECK(all != (char *)-1 && read_only != (char *)-1 && part != (char *)-1);
    // Pages 8 to 15, and 20 on, of which two cannot be written.
    CHECK(munmap(part, 8 * P) == 0 && munmap(part + 16 * P, 4 * P) == 0);
    CHECK(mprotect(part + 24 * P, 2 * P, PROT_READ) == 0);
    static unsigned char said[32];
    ready();
    unsigned step = 0;
    do {
        unsigned page = step * 5 % 32;
        char *view = page >= 8 && page < 16 ? part : all;
        view[page * P + 2] = ++said[page];
        CHECK_EQUAL((unsigned char)read_only[page * P + 2], said[page]);
        step++;
    } while (go_on());
    for (int page = 0; page < 32; page++) {
        CHECK_EQUAL((unsigned char)all[page * P + 2], said[page]);
        CHECK_EQUAL((unsigned char)read_only[page * P + 2], said[page]);
        if ((page >= 8 && page < 16) || page >= 20) CHECK_EQUAL((unsigned char)part[page * P + 2], said[page]);
    }
    // Every piece counts: one, one, and four of the last.
    struct shmid_ds about;
    CHECK(shmctl(id, IPC_STAT, &about) == 0);
    CHECK_EQUAL(about.shm_nattch, 6);
    CHECK(mprotect(read_only, P, PROT_READ | PROT_WRITE) < 0 && errno == EACCES);
    PASS();
}
