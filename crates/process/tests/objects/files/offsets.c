// object: file in a scratch directory, its offset shared by dup and fork
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/wait.h>

int main(void) {
    int fd = open("/tmp/file", O_RDWR | O_CREAT, 0600), other = dup(fd);
    int ask[2], answer[2];
    CHECK(!pipe(ask) && !pipe(answer));
    if (!fork()) {
        char byte;
        while (read(ask[0], &byte, 1) == 1)
            if (write(fd, &byte, 1) != 1 || write(answer[1], &byte, 1) != 1) _exit(1);
        _exit(0);
    }
    ready();
    off_t at = 0;
    do {
        char byte = 'a' + at % 20, back;
        CHECK(write(at % 3 ? other : fd, &byte, 1) == 1);
        CHECK(write(ask[1], "X", 1) == 1 && read(answer[0], &back, 1) == 1);
        at += 2;
        CHECK_EQUAL(lseek(fd, 0, SEEK_CUR), at);
        CHECK_EQUAL(lseek(other, 0, SEEK_CUR), at);
    } while (go_on());
    for (off_t i = 0; i < at; i += 2) {
        char pair[2];
        CHECK(pread(fd, pair, 2, i) == 2);
        CHECK(pair[0] == 'a' + i % 20 && pair[1] == 'X');
    }
    PASS();
}
