// object: a file of a scratch directory, mapped shared and written
// status: captured
// note: POSIX shared memory (`shm_open`), sqlite, lmdb; compared by blocks of 64 KiB
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

#define P 4096

int main(void) {
    int fd = shm_open("/numbers", O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && ftruncate(fd, 100 * P) == 0);
    char *memory = mmap(0, 100 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    close(fd);
    ready();
    unsigned step = 0;
    static unsigned char said[100];
    do {
        step++;
        for (int i = 0; i < 3; i++) {
            unsigned page = (step * 7 + i * 31) % 100;
            said[page]++;
            memory[page * P + page] = said[page];
        }
    } while (go_on());
    fd = shm_open("/numbers", O_RDONLY, 0);
    CHECK(fd >= 0);
    for (int page = 0; page < 100; page++) {
        unsigned char byte;
        CHECK(pread(fd, &byte, 1, page * P + page) == 1);
        CHECK_EQUAL(byte, said[page]);
        CHECK_EQUAL((unsigned char)memory[page * P + page], said[page]);
    }
    memory[1] = 'z';
    char byte;
    CHECK(pread(fd, &byte, 1, 1) == 1 && byte == 'z');
    PASS();
}
