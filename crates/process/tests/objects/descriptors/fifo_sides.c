// object: named pipe between two processes, a side in each
// status: captured
#include "object.h"
#include <fcntl.h>
#include <sys/stat.h>

int main(void) {
    CHECK(!mkfifo("/run/there", 0600) && !mkfifo("/run/back", 0600));
    if (!fork()) {
        int from = open("/run/there", O_RDONLY), to = open("/run/back", O_WRONLY);
        unsigned value;
        while (read(from, &value, 4) == 4) {
            value = ~value;
            if (write(to, &value, 4) != 4) break;
        }
        _exit(0);
    }
    int to = open("/run/there", O_WRONLY), from = open("/run/back", O_RDONLY);
    CHECK(to >= 0 && from >= 0);
    ready();
    unsigned count = 0, value;
    do {
        CHECK(write(to, &count, 4) == 4);
        CHECK(read(from, &value, 4) == 4);
        CHECK_EQUAL(value, ~count);
        count++;
    } while (go_on());
    close(to);
    CHECK(read(from, &value, 4) == 0);
    PASS();
}
