// object: memfd, passed on by fork; children write to it and end
// status: captured
#include "object.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define P 4096

int main(void) {
    int fd = memfd_create("forked", 0);
    CHECK(fd >= 0 && ftruncate(fd, 40 * P) == 0);
    char *memory = mmap(0, 20 * P, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(memory != MAP_FAILED);
    static unsigned char said[40];
    ready();
    unsigned step = 0;
    do {
        unsigned first = step * 3 % 20, second = 20 + step * 7 % 20;
        said[first]++;
        said[second]++;
        pid_t child = fork();
        CHECK(child >= 0);
        if (!child) {
            memory[first * P] = said[first];
            if (pwrite(fd, &said[second], 1, second * P) != 1) _exit(1);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        step++;
    } while (go_on());
    for (int page = 0; page < 40; page++) {
        unsigned char byte;
        CHECK(pread(fd, &byte, 1, page * P) == 1);
        CHECK_EQUAL(byte, said[page]);
    }
    PASS();
}
