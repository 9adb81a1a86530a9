# How every target of this repository is compiled. Third-party headers are system includes, so that
# these warnings speak of our code alone.

include(CheckIPOSupported)

set(STOOK_IPO OFF)
if(CMAKE_BUILD_TYPE STREQUAL "Release" AND NOT STOOK_SANITIZE)
  check_ipo_supported(RESULT STOOK_IPO OUTPUT stook_ipo_reason LANGUAGES CXX)
  if(NOT STOOK_IPO)
    message(STATUS "Building without link-time optimisation: ${stook_ipo_reason}")
  endif()
endif()

if(STOOK_SANITIZE STREQUAL "address")
  set(stook_sanitize_flags -fsanitize=address,undefined -fno-sanitize-recover=undefined)
elseif(STOOK_SANITIZE STREQUAL "thread")
  set(stook_sanitize_flags -fsanitize=thread)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # ThreadSanitizer does not model fences. Ours order a flag against a queue (the doorbell), no
    # data is published by them alone, so what the warning is about cannot hide a race in data.
    list(APPEND stook_sanitize_flags -Wno-tsan)
  endif()
elseif(STOOK_SANITIZE STREQUAL "fuzzer")
  # Coverage for the fuzzer, with the sanitizers that turn what it finds into a crash.
  set(stook_sanitize_flags -fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined)
elseif(NOT STOOK_SANITIZE STREQUAL "")
  message(FATAL_ERROR "STOOK_SANITIZE=${STOOK_SANITIZE} is unknown: use address, thread, fuzzer or nothing.")
endif()

# Warnings, sanitizers and link-time optimisation for one of our targets.
function(stook_configure_target target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wconversion -Wshadow)
  if(STOOK_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(STOOK_SANITIZE)
    target_compile_options(${target} PRIVATE ${stook_sanitize_flags} -fno-omit-frame-pointer)
    target_link_options(${target} PRIVATE ${stook_sanitize_flags})
  endif()
  set_target_properties(${target} PROPERTIES INTERPROCEDURAL_OPTIMIZATION ${STOOK_IPO})
endfunction()

# stook_add_room(NAME DEPENDS target...) makes a static library of the *.cpp files that lie in the
# calling folder, or in FOLDER under it. A room of headers alone is an interface library.
function(stook_add_room name)
  cmake_parse_arguments(PARSE_ARGV 1 room "" "FOLDER" "DEPENDS")
  set(folder "${CMAKE_CURRENT_SOURCE_DIR}")
  if(room_FOLDER)
    string(APPEND folder "/${room_FOLDER}")
  endif()
  file(GLOB sources CONFIGURE_DEPENDS "${folder}/*.cpp")
  if(sources)
    add_library(${name} STATIC ${sources})
    target_include_directories(${name} PUBLIC "${PROJECT_SOURCE_DIR}")
    target_link_libraries(${name} PUBLIC ${room_DEPENDS})
    stook_configure_target(${name})
  else()
    add_library(${name} INTERFACE)
    target_include_directories(${name} INTERFACE "${PROJECT_SOURCE_DIR}")
    target_link_libraries(${name} INTERFACE ${room_DEPENDS})
  endif()
endfunction()
