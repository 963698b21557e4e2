// object: memfd, mapped shared, privately and read-only at once
// status: captured
#include "object.h"
#include <sys/mman.h>

#define P 4096

int main(void) {
    int fd = memfd_create("views", 0);
    CHECK(fd >= 0 && ftruncate(fd, 64 * P) == 0);
    char *shared = mmap(0, 64 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    char *read_only = mmap(0, 32 * P, PROT_READ, MAP_SHARED, fd, 32 * P);
    char *own = mmap(0, 64 * P, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    CHECK(shared != MAP_FAILED && read_only != MAP_FAILED && own != MAP_FAILED);
    for (int page = 0; page < 16; page++) own[page * P] = 'o';
    ready();
    unsigned step = 0;
    static unsigned char said[64], written[64], kept[16];
    do {
        step++;
        for (int i = 0; i < 5; i++) {
            unsigned page = (step * 3 + i * 17) % 64;
            said[page]++;
            shared[page * P] = said[page];
            written[page] = step;
            CHECK(pwrite(fd, &written[page], 1, page * P + 1) == 1);
            kept[page % 16]++;
            own[page % 16 * P + 2] = kept[page % 16];
        }
        for (int page = 0; page < 64; page++) {
            CHECK_EQUAL((unsigned char)shared[page * P + 1], written[page]);
            if (page >= 32) CHECK_EQUAL((unsigned char)read_only[(page - 32) * P], said[page]);
        }
    } while (go_on());
    for (int page = 0; page < 64; page++) {
        unsigned char byte;
        CHECK(pread(fd, &byte, 1, page * P) == 1);
        CHECK_EQUAL(byte, said[page]);
        CHECK_EQUAL((unsigned char)own[page * P], page < 16 ? 'o' : said[page]);
        if (page < 16) CHECK_EQUAL((unsigned char)own[page * P + 2], kept[page]);
        CHECK_EQUAL((unsigned char)shared[page * P + 2], 0);
    }
    // A read-only mapping of a file opened for writing can be made writable.
    CHECK(mprotect(read_only, 32 * P, PROT_READ | PROT_WRITE) == 0);
    read_only[5] = 'w';
    CHECK_EQUAL(shared[32 * P + 5], 'w');
    PASS();
}
