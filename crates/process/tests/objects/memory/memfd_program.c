// object: a program that is run from a memfd (`fexecve`)
// status: refused: memfd
// note: run it from a file that every node has
#include "object.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sendfile.h>

extern char **environ;

int main(int count, char **arguments) {
    if (count == 1) {
        int file = open("/proc/self/exe", O_RDONLY), fd = memfd_create("program", MFD_CLOEXEC);
        CHECK(file >= 0 && fd >= 0);
        while (sendfile(fd, file, 0, 1 << 20) > 0) {}
        char *again[] = {arguments[0], "again", 0};
        fexecve(fd, again, environ);
        FAIL("fexecve");
    }
    ready();
    while (go_on()) {}
    PASS();
}
