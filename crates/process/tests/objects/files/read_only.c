// object: file of the host, read in part
// status: captured
// note: opened again by path; its content must be the same on both nodes
#include "object.h"
#include <fcntl.h>

int main(void) {
    int fd = open("/proc/self/exe", O_RDONLY), again;
    char byte, other;
    off_t at = 0;
    CHECK(fd >= 0);
    ready();
    do {
        CHECK(read(fd, &byte, 1) == 1);
        again = open("/proc/self/exe", O_RDONLY);
        CHECK(again >= 0 && pread(again, &other, 1, at) == 1 && !close(again));
        CHECK_EQUAL(byte, other);
        // Of some thousand bytes none may be left before it is asked.
        if (++at == 1000) at = lseek(fd, 0, SEEK_SET);
    } while (go_on());
    CHECK_EQUAL(lseek(fd, 0, SEEK_CUR), at);
    PASS();
}
