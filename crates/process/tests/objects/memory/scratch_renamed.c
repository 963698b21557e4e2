// object: files of a scratch directory, mapped shared, renamed and replaced
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>

#define P 4096

// Writes a new file through a mapping, gives it the name of the last one, and goes on writing to both.
int main(void) {
    char *now = 0, *before = 0;
    unsigned char in_now[16] = {0}, in_before[16] = {0};
    ready();
    unsigned step = 0;
    do {
        if (step % 6 == 0) {
            int fd = open("/tmp/new", O_RDWR | O_CREAT | O_EXCL, 0600);
            CHECK(fd >= 0 && ftruncate(fd, 16 * P) == 0);
            if (before) munmap(before, 16 * P);
            before = now;
            memcpy(in_before, in_now, 16);
            now = mmap(0, 16 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
            CHECK(now != MAP_FAILED);
            close(fd);
            memset(in_now, 0, 16);
        }
        if (step % 6 == 3) CHECK(rename("/tmp/new", "/tmp/current") == 0);
        now[step % 16 * P] = ++in_now[step % 16];
        if (before) before[step * 5 % 16 * P] = ++in_before[step * 5 % 16];
        step++;
    } while (go_on());
    int fd = open((step - 1) % 6 >= 3 ? "/tmp/current" : "/tmp/new", O_RDONLY);
    CHECK(fd >= 0);
    for (int page = 0; page < 16; page++) {
        unsigned char byte;
        CHECK(pread(fd, &byte, 1, page * P) == 1);
        CHECK_EQUAL(byte, in_now[page]);
        CHECK_EQUAL((unsigned char)now[page * P], in_now[page]);
        if (before) CHECK_EQUAL((unsigned char)before[page * P], in_before[page]);
    }
    now[1] = 'n';
    char byte;
    CHECK(pread(fd, &byte, 1, 1) == 1 && byte == 'n');
    PASS();
}
