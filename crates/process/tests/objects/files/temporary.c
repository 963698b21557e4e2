// object: file without a name from the start (O_TMPFILE)
// status: captured
// note: as one that was removed
#include "object.h"
#include <fcntl.h>

int main(void) {
    int fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
    CHECK(fd >= 0);
    ready();
    uint64_t count = 0, got;
    do {
        CHECK(pwrite(fd, &count, 8, count % 100 * 8) == 8);
        count++;
    } while (go_on());
    for (uint64_t i = count > 100 ? count - 100 : 0; i < count; i++)
        CHECK(pread(fd, &got, 8, i % 100 * 8) == 8 && got == i);
    PASS();
}
