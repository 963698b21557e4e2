// object: named pipe that a process waits to open
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    CHECK(!mkfifo("/tmp/fifo", 0600));
    if (!fork()) {
        int fd = open("/tmp/fifo", O_WRONLY);
        CHECK(write(fd, "hello", 5) == 5);
        _exit(0);
    }
    ready();
    while (go_on()) {}
    int fd = open("/tmp/fifo", O_RDONLY);
    char text[8];
    CHECK(read(fd, text, 8) == 5 && !memcmp(text, "hello", 5));
    CHECK(read(fd, text, 8) == 0);
    PASS();
}
