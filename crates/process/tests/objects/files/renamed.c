// object: file that is renamed again and again while open
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    char from[32] = "/tmp/name0", to[32];
    int fd = open(from, O_RDWR | O_CREAT, 0600);
    ready();
    int count = 0;
    struct stat one, two;
    do {
        CHECK(write(fd, "x", 1) == 1);
        snprintf(to, sizeof to, "/tmp/name%d", ++count);
        CHECK(!rename(from, to));
        strcpy(from, to);
        CHECK(!stat(to, &one) && !fstat(fd, &two));
        CHECK(one.st_ino == two.st_ino && one.st_dev == two.st_dev);
        CHECK_EQUAL(two.st_size, count);
    } while (go_on());
    PASS();
}
