// object: directories and files opened by name only (O_PATH)
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    mkdir("/tmp/dir", 0700);
    int dir = open("/tmp/dir", O_PATH | O_DIRECTORY), etc = open("/etc", O_PATH), file = open("/etc/passwd", O_PATH);
    CHECK(dir >= 0 && etc >= 0 && file >= 0);
    ready();
    int count = 0;
    do {
        char name[32], byte;
        snprintf(name, sizeof name, "f%d", count++);
        int fd = openat(dir, name, O_CREAT | O_EXCL | O_RDWR, 0600);
        CHECK(fd >= 0 && !close(fd));
        CHECK(!faccessat(etc, "passwd", R_OK, 0));
        CHECK(read(file, &byte, 1) < 0 && errno == EBADF);
    } while (go_on());
    struct stat stat;
    for (int i = 0; i < count; i++) {
        char path[64];
        snprintf(path, sizeof path, "/tmp/dir/f%d", i);
        CHECK(!lstat(path, &stat));
    }
    PASS();
}
