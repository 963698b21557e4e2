// object: a program in a scratch directory that is removed while it runs
// status: refused: a file without a name
// note: let it stay where it is while it is running
#include "object.h"
#include <fcntl.h>
#include <sys/sendfile.h>

int main(int count, char **arguments) {
    if (count == 1) {
        int file = open("/proc/self/exe", O_RDONLY), copy = open("/tmp/program", O_WRONLY | O_CREAT, 0700);
        CHECK(file >= 0 && copy >= 0);
        while (sendfile(copy, file, 0, 1 << 20) > 0) {}
        CHECK(close(copy) == 0);
        execl("/tmp/program", arguments[0], "again", (char *)0);
        FAIL("execl");
    }
    CHECK(unlink("/tmp/program") == 0);
    ready();
    while (go_on()) {}
    PASS();
}
